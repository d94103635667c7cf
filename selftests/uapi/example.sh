#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Print the example program of Documentation/uapi.rst; with `test`, also what the page says
# that it prints, as the array example_output.
#
#   selftests/uapi/example.sh [test]
set -eu
cd "$(dirname "$0")/../.."
page=Documentation/uapi.rst
echo '// SPDX-License-Identifier: GPL-2.0-or-later'
sed -n '/^\.\. example begins$/,/^\.\. example ends$/{/^\.\. /d;s/^   //;p}' $page
[ "${1-}" = test ] || exit 0
echo 'static const char example_output[] ='
sed -n '/^It prints::$/,/^===/s/^   \(.*\)/	"\1\\n"/p' $page
echo '	"";'
