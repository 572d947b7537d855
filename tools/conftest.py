"""These run where another program is installed; pytest must not import them to look for examples."""

collect_ignore = ["io/dicom_seg.py", "serving/deploy_app.py", "serving/label_series.py"]
collect_ignore += ["federated/client.py", "federated/worker.py"]
