"""Placement replayed in simulated time: a trace of jobs on a made-up fleet, through the plane's own planner and through first fit."""
