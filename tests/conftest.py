"""One thread per process, before torch is imported: tests run side by side on small machines.

Tests marked ``fault("...")`` are the breaking battery. A session that ran any of them ends with how
many faults were tried and how many of them did no harm; the two must be equal.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

_tried: set[str] = set()
_harmed: set[str] = set()


def pytest_itemcollected(item):
    mark = item.get_closest_marker("fault")
    if mark is not None:
        (name,) = mark.args
        item.user_properties.append(("fault", name))


def pytest_runtest_logreport(report):
    if "fault" not in dict(report.user_properties):
        return
    if report.failed:
        _harmed.add(report.nodeid)
    if report.failed or (report.when == "call" and report.passed):
        _tried.add(report.nodeid)


def pytest_sessionfinish(session, exitstatus):
    if _harmed and exitstatus == 0:
        session.exitstatus = 1


def pytest_unconfigure(config):
    if _tried and not hasattr(config, "workerinput"):  # the last line, after pytest's own
        print(f"faults tried {len(_tried)}, survived {len(_tried - _harmed)}", flush=True)
