"""The planner, pure: which queued jobs go where now, who makes room, and why the others wait. No SQL, no clock, no state between passes."""
