"""How planning, a run with nothing to do, and the report grow with the matrix."""
