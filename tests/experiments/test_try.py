from vim_cases import tiny_vim
from experiments.train import train
def test_x(tiny, tmp_path):
    e = tiny_vim(tiny, "model.generation.acceptance=[0.5]", "trainer.validate_every=2")
    r = train(e, "vim", tmp_path / "runs/experiments/vim")
    for k, v in r["metrics"].items(): print(k, v, r["protocols"][k])
