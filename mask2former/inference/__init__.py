"""Predicting with a built model: predictor, pipeline, test-time augmentation, tracking, outputs."""
