"""The app runs where MONAI Deploy is installed; pytest must not import it to look for examples."""

collect_ignore = ["deploy_app.py"]
