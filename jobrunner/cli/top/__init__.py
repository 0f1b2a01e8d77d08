"""Owns `jobrunner top`: queues, throughput and one list, again and again, with keys where Textual is installed.

It must not read a table (inspection does) nor change a row but by the verbs that `jobs retry` and `jobs cancel` use.
"""
