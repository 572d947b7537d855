"""What lies here is for an unpacked bundle, one a process; tests/integrations/test_zoo.py runs it."""

collect_ignore_glob = ["test_*.py"]
