"""HTTP: the application, keys, status, server-sent events; and a folder for each dialect."""
