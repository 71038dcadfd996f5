
# Names of VPSs, which the host knows.
_bailiwick_and_names() {
    _bailiwick "$@"
    local i word verb="" given="" root=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            --root) root=(--root "${COMP_WORDS[i + 1]}"); i=$((i + 1)) ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=$word; else given=$word; fi ;;
        esac
    done
    case $verb in
        delete|start|stop|restart|freeze|thaw) ;;
        get|inspect|why|logs|exec|jobs) [[ -z $given ]] || return ;;
        *) return ;;
    esac
    case ${COMP_WORDS[COMP_CWORD]} in
        -*) ;;
        *) COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" "${root[@]}" names 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    esac
}
complete -F _bailiwick_and_names -o bashdefault -o default bailiwick
