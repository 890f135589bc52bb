#!/usr/bin/env bash
# The whole pipeline, stage by stage, on synthetic slides. Run it in an empty folder:
#
#     bash pipeline.sh            # a cohort large enough to learn from (minutes)
#     bash pipeline.sh --quick    # a tiny one (seconds): shows the way, not the result
#
# With your own data, put your slides into slides/, write labels.csv, and leave the first step out.
set -euo pipefail

quick=""; epochs=60
if [ "${1:-}" = "--quick" ]; then quick="--quick"; epochs=2; fi

# 0. Slides and labels: slides/*.tif and labels.csv (slide_id,label,patient_id,split).
wsimil synthetic . $quick

# 1. Tissue and tiles: 256 um squares, to be read as 224 px. Look at tiles/*.jpg before you go on.
wsimil tile slides/

# 2. A feature vector per tile. morphology is built in; a pretrained encoder says more: --model uni --weights FILE.
wsimil extract --model morphology

# 3. How far tiles are from each other (optional: train makes what it needs).
wsimil distances

# 4. A slide-level model. model/report.html tells how it went.
wsimil train --bags feats/ --epochs "$epochs"

# 5. A new slide, straight from its file.
wsimil predict "slides/$(ls slides | head -n 1)"
