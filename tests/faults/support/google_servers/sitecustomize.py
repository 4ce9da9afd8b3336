"""Leads a process whose PYTHONPATH contains this folder to fake servers instead of Google's."""

import os

if "FAKE_IAM_ENDPOINT" in os.environ:
    import google.auth.iam

    google.auth.iam._IAM_ENDPOINT = os.environ["FAKE_IAM_ENDPOINT"]
