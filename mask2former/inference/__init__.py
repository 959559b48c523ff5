"""Prediction: predictor, pipeline, test-time augmentation, tracking, output files."""
