import warnings

import pytest
import torch
from watched_runs import OwnModule, small_data, small_module, watched_trainer

from skipcl_lightning.callbacks import ListDiagnostics


def measure(module, data, callback=None):
    trainer = watched_trainer([callback or ListDiagnostics(top_k=3)], max_epochs=1)
    trainer.fit(module, data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name.removeprefix("lists/"): value for name, value in found.items() if name.startswith("lists/")}


class Still(OwnModule):
    """Does not learn, so that what is measured is known."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Repeater(Still):
    """Scores the item that just played first."""

    def session_query(self, batch):
        return self.item_table[batch.items.gather(1, batch.lengths[:, None] - 1).squeeze(1)]


@torch.no_grad()
def test_shares_and_popularity_are_those_of_a_loop():
    data = small_data()
    module = Still(data.num_items)
    with torch.enable_grad():
        values = measure(module, data)
    counts = data.item_counts.tolist()
    popularity = [sum(1 for other in counts[1:] if other <= count) / data.num_items for count in counts]
    first, following, listed, targets = [], [], [], []
    for batch in data.val_dataloader():
        scores = module.session_query(batch) @ module.item_table.T
        for row, session in enumerate(batch.items.tolist()):
            last = session[int(batch.lengths[row]) - 1]
            best = sorted(range(1, data.num_items + 1), key=lambda item: -float(scores[row, item]))[:3]
            first.append(best[0] == last)
            listed += [popularity[item] for item in best]
            if batch.target_feedback[row] >= batch.skip_threshold:
                following.append(int(batch.target[row]) == last)
                targets.append(popularity[int(batch.target[row])])
    expected = {
        "last_item_first": first,
        "last_item_next": following,
        "popularity": listed,
        "target_popularity": targets,
    }
    assert values == pytest.approx({name: sum(each) / len(each) for name, each in expected.items()}, abs=1e-5)


def test_a_model_that_repeats_the_last_item_is_named_once():
    data = small_data(600)
    module = Repeater(data.num_items)
    module.item_table.data = torch.nn.functional.normalize(module.item_table.data, dim=1)
    trainer = watched_trainer([ListDiagnostics()], max_epochs=2)
    with pytest.warns(UserWarning, match="item that just played before 100% of the targets") as found:
        trainer.fit(module, data)
    assert sum("just played" in str(warning.message) for warning in found) == 1
    assert float(trainer.callback_metrics["lists/last_item_first"]) == 1


def test_a_model_that_does_not_is_not_named():
    data = small_data(600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(small_module(data), data)["last_item_first"] < 0.5


def test_excluded_items_are_in_no_list():
    data = small_data()
    module = Repeater(data.num_items)
    module.exclude_seen = True
    assert measure(module, data)["last_item_first"] == 0


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        ListDiagnostics(top_k=0)
    with pytest.raises(TypeError, match="ListDiagnostics"):
        watched_trainer([ListDiagnostics()]).validate(
            torch_module_without_parts(), torch.utils.data.DataLoader([0]), verbose=False
        )


def torch_module_without_parts():
    from lightning.pytorch.demos.boring_classes import BoringModel

    return BoringModel()
