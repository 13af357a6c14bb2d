"""Lets `bitwright.qcore.declare.inject` be imported where torch is not installed. Python runs this file at start-up.

`bitwright.qcore` imports torch in its `__init__`; here the package stands without it, its modules can be imported one
by one. In subprocesses too, which inherit PYTHONPATH.
"""

import sys
from pathlib import Path
from types import ModuleType

package = ModuleType("bitwright.qcore")
package.__path__ = [str(Path(__file__).parents[2] / "qcore")]
sys.modules[package.__name__] = package
