"""Break a running `bs-ray edit` on purpose, run the same command again, and count the photos."""
