"""The quality gate: is a painted case like real tissue, and no copy?"""
