// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/json.h"

struct json_object *ferry_json_get(struct json_object *obj, const char *key, enum json_type type)
{
	struct json_object *value;

	if (!json_object_is_type(obj, json_type_object))
		return NULL;
	if (!json_object_object_get_ex(obj, key, &value) || !json_object_is_type(value, type))
		return NULL;
	return value;
}

const char *ferry_json_string(struct json_object *obj, const char *key)
{
	struct json_object *value = ferry_json_get(obj, key, json_type_string);

	return value ? json_object_get_string(value) : NULL;
}

bool ferry_json_bool(struct json_object *obj, const char *key, bool otherwise)
{
	struct json_object *value = ferry_json_get(obj, key, json_type_boolean);

	return value ? json_object_get_boolean(value) : otherwise;
}

uint64_t ferry_json_uint(struct json_object *obj, const char *key, uint64_t otherwise)
{
	struct json_object *value = ferry_json_get(obj, key, json_type_int);

	if (!value || json_object_get_int64(value) < 0)
		return otherwise;
	return (uint64_t)json_object_get_int64(value);
}

size_t ferry_json_length(struct json_object *array)
{
	return json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;
}
