import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, ESASRec, GRU4Rec, SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import last_position
from skipcl_lightning.model import SessionModel

MAKERS = {
    "SASRec": lambda layers: SASRec(8, max_length=7, num_layers=layers, num_heads=2),
    "SASRec, post-norm": lambda layers: SASRec(8, max_length=7, num_layers=layers, norm="post"),
    "ESASRec": lambda layers: ESASRec(8, max_length=7, num_layers=layers),
    "BERT4Rec": lambda layers: BERT4Rec(8, max_length=7, num_layers=layers),
}


@pytest.mark.parametrize("name", MAKERS)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    more=st.integers(0, 3),
    layers=st.integers(1, 3),
)
def test_it_is_the_last_row_of_the_whole(name, lengths, more, layers):
    torch.manual_seed(0)
    backbone = MAKERS[name](layers).double().eval()
    length = min(7, max(1, *lengths, 1) + more)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), length, 8, dtype=torch.float64)
    x[~mask] = torch.nan
    found = backbone(x, mask, last_only=True)
    assert found.shape == (len(lengths), 1, 8)
    torch.testing.assert_close(found.squeeze(1), last_position(backbone(x, mask), mask))


def make(kind, *arguments, **settings):
    torch.manual_seed(0)
    return SkipCLModule(kind(*arguments, **settings), num_items=9, embedding_size=8).eval()


def sessions():
    items = torch.tensor([[5, 3, 4, 7, 5, 1, 2, 6], [2, 1, 6, 0, 0, 0, 0, 0], [0] * 8])
    return SessionBatch(items, torch.where(items % 2 == 0, -1.0, 1.0) * (items != 0))


@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec, ESASRec])
def test_a_query_is_the_same_and_leaves_out_what_nobody_asks_for(backbone):
    module = make(backbone, 8, max_length=7)
    shapes = []
    module.model.backbone.blocks[-1].register_forward_hook(
        lambda block, inputs, output: shapes.append(output.shape)
    )
    found = module.session_query(sessions())
    assert shapes[-1] == (3, 1, 8)

    class Whole(SessionModel):
        def encode(self, batch, keys):
            return super().encode(batch, keys)

    expected = Whole(backbone(8, max_length=7), num_items=module.num_items).eval()
    expected.load_state_dict(module.model.state_dict())
    whole = expected.session_query(sessions())
    torch.testing.assert_close(found, whole)
    assert (whole[:2] != 0).all()


def test_backbones_and_modules_of_ones_own_need_not_know_of_it():
    class Own(SASRec):
        def forward(self, x, valid_mask):
            return 2 * super().forward(x, valid_mask)

    plain = make(SASRec, 8, max_length=7).session_query(sessions())
    torch.testing.assert_close(make(Own, 8, max_length=7).session_query(sessions()), 2 * plain)
    assert make(GRU4Rec, 8).session_query(sessions()).shape == (3, 8)
    compiled = make(SASRec, 8, max_length=7)
    compiled.model.backbone = torch.compile(compiled.model.backbone, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled.session_query(sessions()), plain)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_traced_backbone_is_asked_for_all_positions():
    class Running(torch.nn.Module):
        def forward(self, x, valid_mask):
            return (x * valid_mask[..., None]).cumsum(dim=1)

    plain = make(Running)
    expected = plain.session_query(sessions())
    assert (expected[:2] != 0).all()
    plain.model.backbone = torch.jit.trace(
        plain.model.backbone, (torch.randn(3, 8, 8), sessions().valid_mask)
    )
    torch.testing.assert_close(plain.session_query(sessions()), expected)
