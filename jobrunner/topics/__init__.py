"""Topics: events that are published once, and handed to every group that is subscribed to them.

`jobs.topic(…)` publishes and rewinds, `@jobs.subscribe(…)` declares who gets what. Nothing is imported here: an application that subscribes
at its import must not pay for what only publishers and workers need.
"""
