#!/usr/bin/env bash
# One task on each node, before the run: prints "ok NODE", or "bad NODE: reason". A node that prints nothing is bad, too.
#   CHECK_GPUS      GPUs it must have        CHECK_DISK_GB  least free space for TMPDIR, in GB
#   CHECK_STARTED   seconds since 1970 on the first node when the check began
set -u
node=${SLURMD_NODENAME:-$(hostname)}

bad() {
    echo "bad $node: $1"
    exit 0 # the line is the answer: an exit code would end the check of the other nodes
}

away=$(($(date +%s) - CHECK_STARTED))
if ((away < -300 || away > 300)); then
    bad "its clock is $away seconds off"
fi
free=$(df -P -k "${TMPDIR:-/tmp}" | awk 'NR == 2 {print int($4 / 1e6)}')
if ((free < CHECK_DISK_GB)); then
    bad "$free GB are free for ${TMPDIR:-/tmp}, CHECK_DISK_GB=$CHECK_DISK_GB"
fi
if ((CHECK_GPUS > 0)); then
    # A GPU that has fallen off the bus, or has errors in its memory, fails here and not in the first step.
    said=$(timeout 120 python -c '
import sys, torch
got, wanted = torch.cuda.device_count(), int(sys.argv[1])
if got != wanted:
    sys.exit(f"it has {got} GPUs instead of {wanted}")
for number in range(wanted):
    ones = torch.ones(2048, 2048, device=f"cuda:{number}")
    if (ones @ ones).min().item() != 2048:
        sys.exit(f"GPU {number} computes wrong")
' "$CHECK_GPUS" 2>&1) || bad "$(tail -n 1 <<<"${said:-no answer of its GPUs for 120 seconds}")"
fi
echo "ok $node"
