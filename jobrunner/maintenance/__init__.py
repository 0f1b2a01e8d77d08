"""What keeps the tables small, in bounded steps that any worker takes now and then: no leader, no service of its own."""
