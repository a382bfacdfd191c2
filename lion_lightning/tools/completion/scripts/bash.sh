# Completion of `lion` for bash, written by `lion completion bash`.
_lion() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" words="" file="" number
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="@commands@"
    else
        case "${COMP_WORDS[1]}:$COMP_CWORD:$current" in
@options@
@choices@
        esac
        # keys of the config that is named: the file behind the last -c, or of a pipeline the first one
        case "${COMP_WORDS[1]}" in
            fit|validate|test|inspect|plan|evaluate)
                for ((number = 2; number < COMP_CWORD; number++)); do
                    case "${COMP_WORDS[number-1]}" in -c|--config) file="${COMP_WORDS[number]}" ;; esac
                done ;;
            run) file="${COMP_WORDS[2]}" ;;
        esac
        case "$current" in
            --*) [ -f "$file" ] && words="$words $(lion completion keys "$file" 2>/dev/null)" ;;
        esac
    fi
    case "$previous" in -c|--config) words="" ;; esac
    [ -n "$words" ] && COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _lion lion
