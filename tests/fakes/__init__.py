"""What tests share: stand-ins for workers and colleges, tiny models, servers as processes."""
