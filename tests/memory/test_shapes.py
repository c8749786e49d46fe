"""Shapes that are remembered are those that would have been worked out."""

import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from twostage.memory.shapes import RememberedShapes
from twostage.memory.simulator import without_values
from twostage.memory.storages import StorageTrace


class _Noted(StorageTrace):
    """Notes what every operation gave."""

    def __init__(self, *args):
        super().__init__(*args)
        self.results = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        parts = out if isinstance(out, tuple | list) else (out,)
        told = [
            (part.shape, part.stride(), part.dtype, part.storage_offset())
            for part in parts
            if isinstance(part, torch.Tensor)
        ]
        self.results.append((func, told, self.current, self.host))
        return out


def _results(remembering: bool):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            mid_block_type=None,
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, _Noted(*([RememberedShapes(mode)] if remembering else [])) as trace:
        without_values(unet).requires_grad_(True).enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(unet.conv_in.parameters(), foreach=False)
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                states = torch.zeros(2, 7, 32, dtype=dtype)
                out = unet(torch.zeros(2, 4, 16, 16), torch.zeros(2, dtype=torch.int64), states)[0]
            first, *rest = out.split([1, 1])
            (first[:, ::2].contiguous().mean() + torch.cat(rest).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return trace.results


def test_every_operation_gives_what_it_gives_without_memory():
    assert _results(True) == _results(False)


def test_a_result_that_is_the_argument_itself_stays_so():
    mode = FakeTensorMode()
    with mode, StorageTrace(RememberedShapes(mode)) as trace:
        tensor = torch.zeros(100)
        for _ in range(3):
            assert tensor.add_(1) is tensor
            assert tensor.view(10, 10).untyped_storage()._cdata == tensor.untyped_storage()._cdata
            assert torch.tensor(7) + 0 is not None
        assert trace.current == 400
