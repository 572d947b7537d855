"""These run where another program is installed; pytest must not import them to look for examples."""

collect_ignore = ["deploy_app.py", "federated_client.py", "federated_peer.py"]
