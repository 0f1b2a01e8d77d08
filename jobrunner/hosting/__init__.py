"""The embedded worker, seen from the web server: who starts it, whose it is, and when it has to leave. It must not do its work."""
