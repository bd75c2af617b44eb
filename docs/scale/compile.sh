#!/bin/bash
# Compiles the cases of docs/scale.md, one after the other, and keeps beside this file what the command said of each:
#
#     docs/scale/compile.sh [NAME...]
#
# all of them, or those named. A case whose file is there is not compiled again. A program takes minutes, all take hours.
set -uo pipefail
cd "$(dirname "$0")/../.."

cases() {
  cat <<'END'
0p8b-update        configs/0p8b.py v6e-8  --programs=zero,gradient,update,log
0p8b-prompts       configs/0p8b.py v6e-8  --programs=vision,weights,prefill,fill
0p8b-decode        configs/0p8b.py v6e-8  --programs=decode
0p8b-search        configs/0p8b.py v6e-8  --search
2b-update          configs/2b.py   v6e-8  --programs=gradient,update
2b-decode          configs/2b.py   v6e-8  --programs=decode
4b-v5e             configs/4b.py   v5e-16 --config.update.rows_per_microbatch=16 --programs=gradient
4b-update          configs/4b.py   v5p-8  --config.update.rows_per_microbatch=4 --programs=gradient,update
4b-decode          configs/4b.py   v5p-8  --config.update.rows_per_microbatch=4 --programs=decode
9b-v5e             configs/9b.py   v5e-16 --config.update.rows_per_microbatch=16 --programs=gradient
9b-update          configs/9b.py   v5p-8  --config.update.rows_per_microbatch=4 --programs=gradient,update
9b-decode          configs/9b.py   v5p-8  --config.update.rows_per_microbatch=4 --programs=decode
9b-teacher-decode  configs/9b.py   v5p-8  --config.update.rows_per_microbatch=4 --programs='teacher weights,teacher decode'
9b-teacher-prompts configs/9b.py   v5p-8  --config.update.rows_per_microbatch=4 --programs="teacher vision,teacher's prefill of 9216,teacher's fill of 21504 keys after 9216"
9b-compressor      configs/9b.py   v5p-8  --config.update.rows_per_microbatch=4 --programs=compressor
colab-update       configs/colab.py v5e-1 --programs=gradient,update
colab-decode       configs/colab.py v5e-1 --programs=weights,decode
one-gpu-update     configs/one_gpu.py v5p-2 --programs=gradient,update
colab-prompts      configs/colab.py v5e-1 --programs=vision,prefill,fill
one-gpu-decode     configs/one_gpu.py v5p-2 --programs=decode,weights,"teacher weights","teacher decode"
one-gpu-prompts    configs/one_gpu.py v5p-2 --programs=prefill,fill,"teacher prefill","teacher fill",compressor
END
}

cases | while read -r name config topology rest; do
  out=docs/scale/$name.json
  if [[ -e $out || ($# -gt 0 && " $* " != *" $name "*) ]]; then continue; fi
  eval "flags=($rest)"
  echo "$name" >&2
  python -m zppo_jax.aot --config="$config" --topology="$topology" "${flags[@]}" --minutes=25 --json \
    </dev/null >"$out.new" && mv "$out.new" "$out"
done
