"""A run whose values are invented: it has the shape of ``run.json``, and measures nothing."""

import math


def example_run() -> dict:
    rounds = 30
    epsilons = [round(8.0 * math.sqrt((i + 1) / (rounds + 2)), 4) for i in range(rounds + 2)]
    history = [
        {
            "round": i,
            "recall@50": round(0.36 - 0.16 * math.exp(-i / 7) + 0.004 * math.sin(2.1 * i), 4),
            "recall@10": round(0.135 - 0.075 * math.exp(-i / 8) + 0.003 * math.sin(1.7 * i), 4),
            "loss": round(5.2 + math.exp(-i / 9), 4),
            "epsilon": {"released-model": epsilons[i], "server": None, "network": epsilons[i]},
        }
        for i in range(rounds + 2)
    ]

    def row(r10, r50, n10):
        return {"recall@10": r10, "recall@50": r50, "ndcg@10": n10, "mrr@10": n10 * 0.8, "coverage@10": r50}

    bound = {"delta": 1e-5, "adjacency": "add_remove", "sampling": "everyone", "accountant": "PLD"}
    return {
        "dataset": {
            "name": "ml-100k",
            "users": 943,
            "items": 1682,
            "interactions": 100000,
            "sha256": "9f8e" * 16,
            "cleaning": {"rows": 100000, "kept": 100000, "dropped": {"duplicate": 0, "malformed": 0}},
        },
        "evaluation": {
            "protocol": "loo",
            "context": "training and validation events",
            "catalogue": "file",
            "masked": "context",
        },
        "privacy": {
            "unit": "user",
            "trust": "central",
            "simulated": True,
            "mechanisms": [
                {
                    "name": "popularity",
                    "sample_rate": 1.0,
                    "noise_multiplier": 1.9,
                    "clip_norm": 1.0,
                    "steps": 1,
                },
                {
                    "name": "second_moments",
                    "sample_rate": 1.0,
                    "noise_multiplier": 0.8,
                    "clip_norm": 1.0,
                    "steps": 1,
                },
                {
                    "name": "rounds",
                    "sample_rate": 1.0,
                    "noise_multiplier": 9.7,
                    "clip_norm": 0.5,
                    "steps": 30,
                },
            ],
            "adversaries": [
                {"name": "released-model", "epsilon": 7.99941, "reason": "noise in every sum", **bound},
                {
                    "name": "server",
                    "epsilon": None,
                    "reason": "it sees each update before the noise",
                    **bound,
                },
                {"name": "network", "epsilon": 7.99941, "reason": "sees cohorts and releases", **bound},
                {
                    "name": "device-thief",
                    "epsilon": None,
                    "reason": "the events themselves are there",
                    **bound,
                },
            ],
        },
        "metrics": {
            **row(0.1351, 0.3524, 0.0712),
            "coverage@10": 0.412,
            "gini@10": 0.871,
            "novelty@10": 2.41,
            "diversity@10": 0.731,
        },
        "validation": row(0.1412, 0.3608, 0.0741),
        "history": history,
        "baselines": {
            "most_popular": row(0.0859, 0.1972, 0.0439),
            "item_knn": row(0.1283, 0.3531, 0.0651),
            "ease": row(0.14, 0.3945, 0.0728),
            "ease_weighted": row(0.1845, 0.4825, 0.0978),
            "central": row(0.1902, 0.4777, 0.0999),
            "local_only": row(0.0912, 0.2081, 0.0466),
        },
        "communication": {
            "uplink_bytes_per_device_round": 312_448,
            "downlink_bytes_per_device_round": 430_210,
            "uplink_bytes_per_device_total": 11_104_000,
            "stages": [
                {"name": "popularity", "uplink_bytes": 6_728, "downlink_bytes": 120},
                {"name": "second_moments", "uplink_bytes": 1_730_000, "downlink_bytes": 6_728},
                {"name": "rounds", "uplink_bytes": 9_373_440, "downlink_bytes": 12_906_300},
            ],
        },
        "timing": {"wall_s": 187.3, "train_s": 61.0, "device_rounds_per_s": 2143.0, "peak_rss_mb": 812.0},
        "versions": {"fedrecall": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
        "seed": 0,
        "config": {
            "model": {"dim": 32, "layers": 2},
            "dataset": "ml-100k",
            "train": {"rounds": 30, "lr": 0.001},
        },
        "long_tail": {
            "decile": list(range(1, 11)),
            "train_share": [0.412, 0.21, 0.131, 0.089, 0.062, 0.041, 0.027, 0.016, 0.009, 0.003],
            "exposure_share": [0.502, 0.231, 0.118, 0.071, 0.039, 0.02, 0.011, 0.005, 0.002, 0.001],
        },
        "ablation": {
            "full run": row(0.1351, 0.3524, 0.0712),
            "without the start": row(0.0601, 0.1702, 0.0311),
            "without the rounds": row(0.1289, 0.3441, 0.0688),
            "without the user tower": row(0.1348, 0.3501, 0.0709),
        },
        "leak_probe": {
            "recall@10": 0.0064,
            "most_popular recall@10": 0.0859,
            "rounds": 100,
            "verdict": "clean",
        },
        "groups": {
            "activity": {
                "users": {"1": 95, "2": 94, "10": 93},
                "metrics": {
                    "recall@10": {"1": 0.172, "2": 0.141, "10": 0.088},
                    "recall@50": {"1": 0.4, "2": 0.36, "10": 0.29},
                },
                "gaps": {"recall@10": 0.084, "recall@50": 0.11},
            },
            "gender": {
                "users": {"F": 273, "M": 670},
                "metrics": {"recall@10": {"F": 0.121, "M": 0.141}, "recall@50": {"F": 0.33, "M": 0.362}},
                "gaps": {"recall@10": 0.02, "recall@50": 0.032},
            },
        },
        "index": {"kind": "flat", "recall@10": 1.0, "recall@50": 1.0, "recall@100": 1.0},
    }
