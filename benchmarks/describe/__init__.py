"""The describe set: how the rules fare that questions are made by, and the baselines that a describing model must
beat."""
