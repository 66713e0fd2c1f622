"""How sure a model is: measures, calibration, samples, extrapolation."""
