import pytest


@pytest.fixture(autouse=True)
def _mujoco(request):
    """The only extra that these tests need."""
    if request.node.get_closest_marker("extra"):
        pytest.importorskip("gymnasium_robotics", reason="needs the extra 'mamujoco'")
