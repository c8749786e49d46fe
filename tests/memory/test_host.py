"""What is kept on the host takes no room on the card, and comes back as it was."""

import torch

from twostage.memory.host import to_card, to_host
from twostage.memory.simulator import simulation
from twostage.memory.storages import StorageTrace

MIB = 1 << 20


def _numbers():
    return torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)


def test_a_tensor_comes_back_with_its_values_and_strides():
    tensor = _numbers().contiguous(memory_format=torch.channels_last)
    back = to_card(to_host(tensor), torch.device("cpu"))
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride()


def test_copies_share_no_memory_with_what_they_were_made_from():
    tensor = _numbers()
    kept = to_host(tensor)
    back = to_card(kept, torch.device("cpu"))
    assert len({part.untyped_storage().data_ptr() for part in (tensor, kept, back)}) == 3


def _follow(trace):
    tensor = torch.empty(MIB // 4)
    kept = to_host(tensor)
    assert (trace.current, trace.host) == (MIB, MIB)
    del tensor
    assert (trace.current, trace.host) == (0, MIB)
    back = to_card(kept, torch.device("cpu"))
    kept.view(2, -1).mul_(2)  # On the host, in place and by a view.
    assert (trace.current, trace.host) == (MIB, MIB)
    del kept, back
    assert (trace.current, trace.host, trace.peak, trace.host_peak) == (0, 0, MIB, MIB)


def test_the_trace_tells_host_from_card():
    with StorageTrace() as trace:
        _follow(trace)


def test_a_simulation_tells_host_from_card():
    with simulation() as trace:
        _follow(trace)
