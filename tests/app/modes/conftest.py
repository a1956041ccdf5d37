"""The runs that the tests of several modes work on."""

from tests.app.modes.runs import chains, flows, gaussian, ladder_run, small_network, vp_run

__all__ = ["chains", "flows", "gaussian", "ladder_run", "small_network", "vp_run"]
