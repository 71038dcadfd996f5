
# Names of VPSs, which the host knows.
complete -c bailiwick -f -n "__fish_seen_subcommand_from delete get inspect why start stop restart freeze thaw logs exec jobs" \
    -a "(bailiwick names 2>/dev/null)"
