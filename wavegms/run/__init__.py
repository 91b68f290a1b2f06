"""What the pipeline and the command line start."""

import sys

# jsonschema, which reading a notebook imports, knows IRIs by a library that compiles their grammar
# at each start: 1.7 of the 2.2 CPU seconds of papermill's import. No notebook is checked for any.
sys.modules.setdefault("rfc3987_syntax", None)
