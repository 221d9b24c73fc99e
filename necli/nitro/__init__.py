"""What only the nitro target needs: nitro-cli, Docker, the host, the parent's proxy, remote commands."""
