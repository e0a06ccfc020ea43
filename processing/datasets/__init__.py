"""Data: the canonical record, one module for every source of films, gaze and reports, and the phantom simulator."""
