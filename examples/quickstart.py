"""A frame in, a private run, lists out, a picture saved."""

import numpy as np
import pyarrow as pa

import fedrecall

# Made-up events of 400 people with four tastes; a pandas or polars frame of your own goes the same way.
rng = np.random.default_rng(0)
user = np.repeat(np.arange(400), 20)
item = (user % 4) * 40 + (60 * rng.random(len(user)) ** 2).astype(int)
frame = pa.table({"user": user, "item": item, "time": rng.integers(0, 10**6, len(user))})

data = fedrecall.dataset_from_frame(frame, user="user", item="item", time="time")
run = fedrecall.run(data, preset="user-eps8", settings={"evaluation.central": False, "evaluation.ablation": False})

print(f"recall@10 {run.metrics['recall@10']:.3f}, report in {run.folder}/report.html")
for row in run.privacy:
    print(f"{row['name']}: epsilon {row['epsilon']} for one {row['unit']} at delta {row['delta']}; {row['reason']}")
print("for user 7:", [row["item"] for row in run.recommend("7", k=5)])
run.recommend_all(k=10, out=run.folder / "lists.parquet")
run.picture(run.folder / "recall.svg")
