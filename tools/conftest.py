"""These run where another program is installed; pytest must not import them to look for examples."""

collect_ignore = ["io/dicom_seg.py", "serving/deploy_app.py", "federated/client.py", "federated/worker.py"]
