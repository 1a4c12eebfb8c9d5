# For the scripts in this folder: `out_of_sight ADDRESS` sets `address` without its password, and puts the
# password into the environment. All users of the machine can read a command's arguments.
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
