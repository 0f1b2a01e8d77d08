"""Stand-ins for what applications used before, so that they move with a changed import. Nothing is imported here: each has its needs."""
