"""SQL statements, one a file; read by `jobrunner.statements`."""
