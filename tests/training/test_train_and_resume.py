"""A run that pushes its checkpoints, is killed in mid-epoch and goes on elsewhere from what was pushed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forks import Forks

CODE = """
import os, signal, sys
from pathlib import Path
out = Path(sys.argv[1])
import numpy as np
import hf_xmc
from toys import WORDS, make_bert_encoder, make_words_data
from huggingface_hub import snapshot_download
from transformers import TrainerCallback
from hf_xmc.losses import UnifiedLoss

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:  # of 4 an epoch; the checkpoint is of step 3
            trainer.push_in_progress.wait_until_done()
            os.kill(os.getpid(), signal.SIGKILL)

def train(name, resume=None, seed=0, **settings):
    global trainer
    encoder = make_bert_encoder(out / name / "bert", dropout=0.1, seed=seed)
    encoder.add_classifier(len(WORDS), 8)
    args = hf_xmc.XMCTrainingArguments(
        output_dir=str(out / name / "run"), use_cpu=True, report_to="none", disable_tqdm=True, num_train_epochs=2,
        logging_steps=1, per_device_train_batch_size=16, learning_rate=1e-3, random_negatives=3, hard_negatives=2,
        mining_depth=5, refresh_epochs=1, save_strategy="steps", save_steps=3, hub_model_id="user/run",
        hub_strategy="checkpoint", hub_always_push=True, **settings,
    )
    trainer = hf_xmc.XMCTrainer(model=encoder, args=args, train_dataset=make_words_data(), loss=UnifiedLoss(encoder))
    if name == "killed":
        trainer.add_callback(Kill())
    trainer.train(resume_from_checkpoint=resume)
    return encoder, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

child = os.fork()
if child == 0:
    train("killed", push_to_hub=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
pushed = Path(snapshot_download("user/run", local_dir=out / "pushed"))
print((pushed / "last-checkpoint" / "trainer_state.json").read_text().replace("\\n", ""))

encoder, losses = train("resumed", resume=str(pushed / "last-checkpoint"), seed=7, push_to_hub=True)
trainer.push_to_hub()
whole, expected = train("whole", push_to_hub=False)
for (name, p), q in zip(whole.named_parameters(), encoder.parameters(), strict=True):
    if "pooler" not in name:  # not saved with this backbone, and read by nobody
        np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy(), err_msg=name)
assert len(losses) == 8 and losses == expected, (losses, expected)

again = hf_xmc.XMCEncoder("user/run", device="cpu")
texts = ["cats and dogs", "war"]
np.testing.assert_allclose(again.query_vectors(texts), encoder.query_vectors(texts), atol=1e-6)
rows, expected = (each.label_classifier.rows.weight.detach().numpy() for each in (again, encoder))
np.testing.assert_array_equal(rows, expected)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_from_what_it_pushed_and_ends_with_the_same_numbers(
    fake_hub,
    tmp_path: Path,
) -> None:
    printed = fake_hub.run(CODE, tmp_path)
    state = next(json.loads(line) for line in printed.splitlines() if '"global_step"' in line)
    assert state["global_step"] == 3 and state["epoch"] == 0.75
    pushed = fake_hub.files("user/run")
    assert json.loads(pushed["last-checkpoint/trainer_state.json"])["global_step"] == 8
    assert {"modules.json", "xmc_config.json", "last-checkpoint/optimizer.pt"} <= set(pushed)


@pytest.mark.slow
def test_two_processes_evaluate_keep_the_best_epoch_and_train_again(forks: Forks, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("trainer_worker.py").read_text()
    started = forks.start_ranks(2, worker, tmp_path)
    forks.finish(*started)
    assert not any("Could not load the best model" in rank.stdout + rank.stderr for rank in started)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for kind in ("static", "classifier"):
        first, second = (rank[kind] for rank in ranks)
        assert first["world_size"] == 2 and first["losses"] == second["losses"]
        assert first["losses"][-1] == pytest.approx(first["best"], abs=1e-5)
        assert first["losses"][1] < first["losses"][0] and first["weights"] == second["weights"]
        # Of both tables only the rows of a step are exchanged; a static encoder leaves DDP nothing to do.
        assert first["optimizer"] == "RowSparseAdamW" and first["wrapped"] == (kind == "classifier")
        assert json.loads((tmp_path / "classifier" / "checkpoint-12" / "xmc_config.json").read_text())["modules"]
