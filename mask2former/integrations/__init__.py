"""Meeting points with other frameworks. Nothing else of this package imports from here."""
