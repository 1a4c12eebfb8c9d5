# For the scripts beside it: `out_of_sight ADDRESS` sets `address`, without its password, which goes into
# the environment. What a command is called with, everybody on the machine can read.
# shellcheck shell=sh
out_of_sight() {
    address=$1
    rest=${address#*://}
    server=${rest%%/*}
    login=${server%@*}
    case $server in
    *:*@*) ;;
    *) return ;;
    esac
    case $login in
    *:*%*)
        echo "keep a password with special characters in the file that PGPASSFILE names," \
            "and out of the address" >&2
        exit 2
        ;;
    *:*) ;;
    *) return ;;
    esac
    PGPASSWORD=${login#*:}
    export PGPASSWORD
    address=${address%%://*}://${login%%:*}@${server##*@}${rest#"$server"}
}
