"""
Jelou's external-support API on loopback, with state, for tests, demonstrations and learning the tool.

What nobody outside Jelou knows is a switch, faults come on demand, and every project has a receiver that checks
credentials. A simulator default is a choice of this project, not knowledge about Jelou.
"""

from jelou_rotation.simulator.faults import Fault, passing_faults
from jelou_rotation.simulator.receivers import Receiver
from jelou_rotation.simulator.server import app, listening, running, serve
from jelou_rotation.simulator.state import Project, Simulator
from jelou_rotation.simulator.switches import Switches

__all__ = [
    "Fault",
    "Project",
    "Receiver",
    "Simulator",
    "Switches",
    "app",
    "listening",
    "passing_faults",
    "running",
    "serve",
]
