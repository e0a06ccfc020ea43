"""Gaze2Report: chest X-ray reports that can be checked."""
