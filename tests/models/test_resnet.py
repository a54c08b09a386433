"""Plain and residual networks: stages of table 1, what each kind of shortcut costs and computes, the first stride."""

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from tencrop.models import resnet, resnext

NAMES = ("plain18", "plain34", *(f"resnet{depth}_{kind}" for depth in (18, 34) for kind in "abc"),
         "resnet50_v1", "resnet101_v1", "resnet152_v1")  # fmt: skip
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
STAGES = ("act1", "maxpool", "layer1", "layer2", "layer3", "layer4")


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def build(name, **options):
    return getattr(resnet, name)(**options)


@pytest.mark.parametrize("name", NAMES)
def test_stages_and_depth_of_table_1(name):
    shapes = {}
    with torch.device("meta"):
        network = build(name)
        for stage in STAGES:
            layer = network.get_submodule(stage)
            layer.register_forward_hook(lambda _l, _i, output, stage=stage: shapes.update({stage: output.shape[1:]}))
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    expansion = 4 if name.endswith("v1") else 1
    widths = [64, 64, *(expansion * width for width in (64, 128, 256, 512))]
    sides = [112, 56, 56, 28, 14, 7]
    assert [tuple(shapes[stage]) for stage in STAGES] == [(w, s, s) for w, s in zip(widths, sides, strict=True)]
    convolutions = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    depth = int("".join(letter for letter in name.removesuffix("_v1") if letter.isdigit()))
    assert len(convolutions) + 1 == depth  # with the fully-connected layer


@pytest.mark.parametrize("depth", BLOCKS)
def test_what_the_shortcuts_cost(depth):
    """Projections of 1 x 1 with BatchNorm: three in B, where dimensions change, one in every block in C."""
    changing = sum(n * 2 * n + 2 * 2 * n for n in (64, 128, 256))
    staying = sum((blocks - (width > 64)) * (width * width + 2 * width)
                  for blocks, width in zip(BLOCKS[depth], (64, 128, 256, 512), strict=True))  # fmt: skip
    names = (f"plain{depth}", *(f"resnet{depth}_{kind}" for kind in "abc"))
    with torch.device("meta"):
        plain, identity, projected, everywhere = (num_parameters(build(name)) for name in names)
    assert (identity - plain, projected - identity, everywhere - projected) == (0, changing, staying)


@pytest.mark.parametrize(("name", "num_projections"), [("plain34", 0), ("resnet34_b", 3), ("resnet34_c", 16)])
def test_where_shortcuts_have_projections(name, num_projections):
    with torch.device("meta"):
        blocks = [module for module in build(name).modules() if isinstance(module, BasicBlock)]
    assert len(blocks) == 16 and sum(block.downsample is not None for block in blocks) == num_projections


def test_b_is_timms_network_with_every_scale_at_1():
    with torch.device("meta"):
        ours, theirs = resnet.resnet34_b(), timm.create_model("resnet34")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    for name in ("plain18", "resnet18_a", "resnet18_c", "resnet50_v1"):
        for module in build(name, width=0.125).modules():
            if isinstance(module, nn.BatchNorm2d):
                assert torch.all(module.weight == 1) and not module.bias.any()


def test_initial_weights_are_he_et_als():
    torch.manual_seed(0)
    for name in ("plain34", "resnet34_c"):
        for module in build(name).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert abs(module.weight.std() / (2 / fan_out) ** 0.5 - 1) < 0.03


def test_shortcut_a_takes_every_second_pixel_and_adds_zeros():
    maps = torch.randn(2, 3, 5, 6)
    output = resnet.PaddedIdentity(num_zeros=4, stride=2)(maps)
    assert output.shape == (2, 7, 3, 3) and not output[:, 3:].any()
    for row in range(3):
        for column in range(3):
            assert torch.equal(output[:, :3, row, column], maps[:, :, 2 * row, 2 * column])


def without_residual(block):
    """The block with scale 0 in its last BatchNorm, so that its residual branch is zero."""
    nn.init.zeros_(block.bn2.weight)
    return block.eval()


def test_a_block_with_zeroed_residual_branch():
    """A plain block gives zeros, a residual block its input."""
    torch.manual_seed(0)
    maps = torch.randn(2, 8, 6, 6).relu()
    assert not without_residual(resnet.PlainBlock(8, 8))(maps).any()
    assert torch.equal(without_residual(resnet.ShortcutA(8, 8))(maps), maps)
    wider = without_residual(resnet.ShortcutA(8, 16, 2, nn.Conv2d(8, 16, 1, 2)))(maps)
    assert torch.equal(wider[:, :8], maps[:, :, ::2, ::2]) and not wider[:, 8:].any()
    block = without_residual(resnet.ShortcutC(8, 8))
    projection, norm = block.downsample
    assert projection.kernel_size == projection.stride[:1] * 2 == (1, 1)
    assert torch.equal(block(maps), norm(projection(maps)).relu())


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"drop_path_rate": 0.1}, "drop_path_rate"),
        ({"drop_block_rate": 0.1}, "drop_block_rate"),
        ({"block_args": {"attn_layer": "se"}}, "attn_layer"),
        ({"aa_layer": nn.AvgPool2d}, "aa_layer"),
    ],
)
def test_plain_networks_refuse_options_that_they_would_ignore(options, argument):
    for build_plain in (resnet.plain18, resnext.resnext50_32x4d_plain):
        with torch.device("meta"), pytest.raises(ValueError, match=f"{argument}: plain networks"):
            build_plain(**options)


@pytest.mark.parametrize("kind", [resnet.PlainBlock, resnet.ShortcutA])
def test_a_block_against_its_convolutions(kind):
    torch.manual_seed(0)
    block, maps = kind(8, 8).double(), torch.randn(2, 8, 6, 6, dtype=torch.float64)
    inner = block.bn1(block.conv1(maps)).relu()
    residual = block.bn2(block.conv2(inner))
    torch.testing.assert_close(block(maps), (residual + (maps if kind is resnet.ShortcutA else 0)).relu())


def test_the_first_stride_of_v1_reads_every_second_pixel():
    """A block of stride 2 is timm's of stride 1 on every second pixel: the first 1 x 1 leaves the others out."""
    torch.manual_seed(0)
    shortcut, maps = nn.Conv2d(16, 32, 1, 2), torch.randn(2, 16, 8, 8)
    ours = resnet.BottleneckV1(16, 8, 2, shortcut).eval()
    theirs = Bottleneck(16, 8, 1, nn.Conv2d(16, 32, 1)).eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(maps), theirs(maps[:, :, ::2, ::2]), rtol=1e-5, atol=1e-6)
    v1_5 = Bottleneck(16, 8, 2, shortcut).eval()
    v1_5.load_state_dict(ours.state_dict())
    assert not torch.allclose(ours(maps), v1_5(maps))


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_weights_of_v1_have_timms_names(depth):
    with torch.device("meta"):
        ours, theirs = build(f"resnet{depth}_v1"), timm.create_model(f"resnet{depth}")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    strides = [(block.conv1.stride[0], block.conv2.stride[0]) for block in ours.modules() if hasattr(block, "conv3")]
    assert strides.count((2, 1)) == 3 and set(strides) == {(2, 1), (1, 1)}
