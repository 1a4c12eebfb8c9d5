"""`python -m devstack.operator_rules`: copies Prometheus' rules into the object of its operator.

kustomize reads no file outside its own folder, so the object has a copy of the rules.
"""

from __future__ import annotations

from textwrap import indent
from typing import Final

from devstack.programs import ROOT

RULES: Final = ROOT / "deploy/prometheus/rules/maramoja.yml"
COPY: Final = ROOT / "deploy/kubernetes/components/prometheus-operator/rules.yaml"
_HEAD: Final = """\
# Written by `python -m devstack.operator_rules` from deploy/prometheus/rules/maramoja.yml: change that.
# Your Prometheus' ruleSelector says which labels it looks for: add yours in the overlay.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: maramoja
  labels: {app.kubernetes.io/name: maramoja}
spec:
"""


def written() -> str:
    """The object, with the current rules."""
    _, _, groups = RULES.read_text().partition("\ngroups:\n")
    return _HEAD + indent(f"groups:\n{groups}", "  ")


if __name__ == "__main__":
    COPY.write_text(written())
