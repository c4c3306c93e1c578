"""llama-server's dialect: /infill."""
